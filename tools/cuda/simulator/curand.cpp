// libcurand.so.10: Candle makes a generator for every device; this project draws nothing from it.
extern "C" {
int curandCreateGenerator(void **generator, int) { return *generator = new char, 0; }
int curandDestroyGenerator(void *generator) { return delete (char *)generator, 0; }
int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
int curandSetStream(void *, void *) { return 0; }
}

/* Looks for one library of CUDA when one of its functions is first called. Compiled once for each library by
   lazy_stubs.py, which says with -D: LIB, its plain name; SONAMES, what its file may be called; BEFORE, files that it needs
   and does not find by itself; STATUS, the error that its functions return where it is missing; IS_DRIVER. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOIN(a, b, c) a##b##c
#define NAMED(a, b, c) JOIN(a, b, c)

static const char *const sonames[] = {SONAMES, 0};
static const char *const before[] = {BEFORE 0};
/* Where toolkits, drivers in containers and the wheels of PyTorch lie. */
static const char *const places[] = {
    "/usr/local/nvidia/lib64",
    "/usr/local/nvidia/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/local/cuda/lib64",
    "/usr/local/lib/python3*/dist-packages/nvidia/*/lib",
    "/usr/local/lib/python3*/site-packages/nvidia/*/lib",
    "/opt/*/lib/python3*/site-packages/nvidia/*/lib",
    "/opt/*/.venv/lib/python3*/site-packages/nvidia/*/lib",
    0,
};
static const char *const wheels = "lib/python3*/site-packages/nvidia/*/lib";
static char reason[768];
static void *handle;
static void *const failed = (void *)-1;

/* The library from the first folder that a pattern finds it in; what it needs from beside it. */
static void *open_in(const char *pattern, const char *soname) {
    char path[1024];
    void *library = 0;
    glob_t found;
    snprintf(path, sizeof path, "%s/%s", pattern, soname);
    if (glob(path, 0, 0, &found) != 0) return 0;
    for (size_t i = 0; i < found.gl_pathc && !library; i++) {
        for (const char *const *name = before; *name; name++) {
            snprintf(path, sizeof path, "%s", found.gl_pathv[i]);
            char *slash = strrchr(path, '/');
            if (!slash) continue;
            snprintf(slash + 1, sizeof path - (size_t)(slash + 1 - path), "%s", *name);
            dlopen(path, RTLD_NOW | RTLD_GLOBAL);
        }
        library = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_GLOBAL);
    }
    globfree(&found);
    return library;
}

/* As the system finds it: LD_LIBRARY_PATH, the cache. */
static void *open_known(const char *soname) {
    for (const char *const *name = before; *name; name++) {
        if (!strchr(*name, '/')) dlopen(*name, RTLD_NOW | RTLD_GLOBAL);
    }
    void *library = dlopen(soname, RTLD_NOW | RTLD_GLOBAL);
    if (!library && !reason[0]) snprintf(reason, sizeof reason, "%s", dlerror());
    return library;
}

static void *open_in_prefix(const char *prefix, const char *tail, const char *soname) {
    char pattern[2048];
    if (!prefix) return 0;
    snprintf(pattern, sizeof pattern, "%s/%s", prefix, tail);
    return open_in(pattern, soname);
}

static void *open_library(void) {
    char list[4096];
    void *library = 0;
    const char *chosen = getenv("CUDA_LAZY_PATH");
    for (const char *const *soname = sonames; *soname && !library; soname++) {
        if (chosen) {
            char *rest = 0;
            snprintf(list, sizeof list, "%s", chosen);
            for (char *dir = strtok_r(list, ":", &rest); dir && !library; dir = strtok_r(0, ":", &rest))
                library = open_in(dir, *soname);
        }
        if (!library) library = open_known(*soname);
        if (!library) library = open_in_prefix(getenv("VIRTUAL_ENV"), wheels, *soname);
        if (!library) library = open_in_prefix(getenv("CONDA_PREFIX"), wheels, *soname);
        if (!library) library = open_in_prefix(getenv("CUDA_HOME"), "lib64", *soname);
        if (!library) library = open_in_prefix(getenv("HOME"), ".local/lib/python3*/site-packages/nvidia/*/lib", *soname);
        for (const char *const *place = places; *place && !library; place++) library = open_in(*place, *soname);
    }
    if (getenv("CUDA_LAZY_DEBUG")) {
        char origin[4096] = "";
        if (library) dlinfo(library, RTLD_DI_ORIGIN, origin);
        fprintf(stderr, "cuda: %s: %s\n", sonames[0], library ? origin : reason);
    }
    return library ? library : failed;
}

/* Stands in for a function of a missing library. */
static long missing_status(void) { return STATUS; }
static long missing_zero(void) { return 0; }
static const char *missing_text(void) { return reason[0] ? reason : "library not loaded"; }
#if IS_DRIVER
static long missing_error_text(int error, const char **text) {
    (void)error;
    *text = missing_text();
    return 0;
}
#endif

static int ends_with(const char *name, const char *end) {
    const size_t length = strlen(name), tail = strlen(end);
    return length >= tail && !strcmp(name + length - tail, end);
}

struct function {
    void *address;
    const char *name;
};

/* Called by a function's jump the first time; gives and keeps the real address. */
__attribute__((visibility("hidden"))) void *NAMED(cuda_lazy_, LIB, _resolve)(struct function *function) {
    const char *name = function->name;
    void *address = 0;
    if (!__atomic_load_n(&handle, __ATOMIC_ACQUIRE)) __atomic_store_n(&handle, open_library(), __ATOMIC_RELEASE);
    if (handle != failed) {
        address = dlsym(handle, name);
        if (!address && !reason[0]) snprintf(reason, sizeof reason, "%s has no %s", sonames[0], name);
    }
    if (!address) {
        address = (void *)missing_status;
#if IS_DRIVER
        if (!strcmp(name, "cuGetErrorString") || !strcmp(name, "cuGetErrorName")) address = (void *)missing_error_text;
#else
        if (ends_with(name, "ErrorString") || ends_with(name, "StatusString") || ends_with(name, "StatusName"))
            address = (void *)missing_text;
        if (ends_with(name, "GetVersion") || ends_with(name, "GetCudartVersion")) address = (void *)missing_zero;
        /* Candle makes a generator for every device, and nothing here draws from one: PyTorch comes without cuRAND. */
        if (!strcmp(name, "curandCreateGenerator") || !strcmp(name, "curandDestroyGenerator") ||
            !strcmp(name, "curandSetStream") || !strcmp(name, "curandSetPseudoRandomGeneratorSeed"))
            address = (void *)missing_zero;
        /* These two return their result through a pointer, as any other function. */
        if (!strcmp(name, "curandGetVersion") || !strcmp(name, "cublasGetVersion_v2")) address = (void *)missing_status;
#endif
    }
    __atomic_store_n(&function->address, address, __ATOMIC_RELEASE);
    return address;
}

// Steps of optimisers, in place.
#pragma once

// Rows that a kernel is handed by value, of which a launch takes so many: with the other parameters they stay below 4 KB.
constexpr int ROWS_AT_ONCE = 120;
template <typename Row> struct Table {
    Row rows[ROWS_AT_ONCE];
};

// Whether a loss is known and not finite: then nothing may move.
__device__ __forceinline__ bool is_diverged(const float *loss) { return loss && !(fabsf(*loss) <= 3.402823466e38f); }

// Where one parameter and what belongs to it lie, and how many numbers each has.
struct Descent {
    unsigned long long parameter, velocity, gradient, count;
};

// Stochastic gradient descent of many parameters, those of one along a row of blocks. A launch that is recorded is given
// where its learning rate and its loss lie.
extern "C" __global__ void sgd(const __grid_constant__ Table<Descent> descents, float learning_rate, float momentum,
                               float weight_decay, const float *current_rate, const float *loss) {
    if (is_diverged(loss)) return;
    const Descent &descent = descents.rows[blockIdx.y];
    const float rate = current_rate ? *current_rate : learning_rate;
    float *parameter = at_address<float>(descent.parameter), *velocity = at_address<float>(descent.velocity);
    const float *gradient = at_address<const float>(descent.gradient);
    for (unsigned long long i = global_index(); i < descent.count; i += gridDim.x * THREADS) {
        const float moved = momentum * velocity[i] + (gradient[i] + weight_decay * parameter[i]);
        velocity[i] = moved;
        parameter[i] -= rate * moved;
    }
}

// Where a running estimate and what a batch had instead lie, and how many numbers each has.
struct Estimate {
    unsigned long long estimate, met, count;
};

// Running estimates, one along each row of blocks: the part `share` of each is replaced by what was met.
extern "C" __global__ void move_estimates(const __grid_constant__ Table<Estimate> estimates, float keep, float share,
                                          const float *loss) {
    if (is_diverged(loss)) return;
    const Estimate &row = estimates.rows[blockIdx.y];
    float *estimate = at_address<float>(row.estimate);
    const float *met = at_address<const float>(row.met);
    for (unsigned long long i = global_index(); i < row.count; i += gridDim.x * THREADS)
        estimate[i] = keep * estimate[i] + share * met[i];
}

// What Adam makes of the moments of one element: m += (1 - keep_first) (g - m), v = keep_second v + (1 - keep_second) g^2.
__device__ __forceinline__ void move_moments(float &first, float &second, float gradient, float keep_first,
                                             float keep_second) {
    first += (1.f - keep_first) * (gradient - first);
    second = keep_second * second + (1.f - keep_second) * (gradient * gradient);
}

// Adam. The bias corrections are in `step_size` and `root_correction`.
extern "C" __global__ void adam(float *parameter, float *first, float *second, const float *gradient, float step_size,
                                float keep_first, float keep_second, float root_correction, float epsilon,
                                unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    move_moments(first[i], second[i], gradient[i], keep_first, keep_second);
    parameter[i] -= step_size * (first[i] / (sqrtf(second[i]) / root_correction + epsilon));
}

// Adam by the largest second moment there was.
extern "C" __global__ void amsgrad(float *parameter, float *first, float *second, float *largest, const float *gradient,
                                   float step_size, float keep_first, float keep_second, float root_correction,
                                   float epsilon, unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    move_moments(first[i], second[i], gradient[i], keep_first, keep_second);
    if (second[i] > largest[i]) largest[i] = second[i];
    parameter[i] -= step_size * (first[i] / (sqrtf(largest[i]) / root_correction + epsilon));
}

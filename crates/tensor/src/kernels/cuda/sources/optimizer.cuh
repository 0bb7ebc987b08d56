// Steps of optimisers, in place.
#pragma once

// Stochastic gradient descent: of one parameter, or of all of them in one buffer.
extern "C" __global__ void sgd(float *parameter, float *velocity, const float *gradient, float learning_rate,
                               float momentum, float weight_decay, unsigned count) {
    const unsigned i = global_index();
    if (i >= count) return;
    const float moved = momentum * velocity[i] + (gradient[i] + weight_decay * parameter[i]);
    velocity[i] = moved;
    parameter[i] -= learning_rate * moved;
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

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

// SPDX-License-Identifier: Apache-2.0
// Side info for given codes. With the codes fixed W_hat = A x is linear in a part x of the side
// info (LinearPart), so tr(E H E^T) is a quadratic of x.
#pragma once

#include "codecs/codec.h"
#include "tensor/matrix.h"

namespace quern {

// Lowers tr(E H E^T) over the values of one part by at most `steps` conjugate gradients, starting
// from those that are stored, and stores the result, rounded: after this, the loss may be higher.
// `h` [n_in, n_in]. Each step costs n_out n_in^2. Same bits for any number of threads.
void refit(MatrixView<const float> w, MatrixView<const float> h, int steps, LinearPart& part);
size_t refit_scratch_bytes(int64_t n_out, int64_t n_in);

}  // namespace quern

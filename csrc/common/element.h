// The types that the elements of a sequence can have.
#pragma once

namespace sequence_kernels {

enum class Element { float16, bfloat16, float32, float64 };

}  // namespace sequence_kernels

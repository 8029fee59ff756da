// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "output.h"

#include <algorithm>

namespace vared2 {

Output::Output(const Clips& clips, const at::TensorOptions& options, const Epilogue& epilogue)
    : clips_(clips),
      written_(epilogue.overwrites ? epilogue.residual->as_strided({clips.elements()}, {1})
                                   : at::empty({clips.elements()}, options)),
      to_(written_.mutable_data_ptr<float>()),
      added_(epilogue.residual == nullptr ? nullptr : epilogue.residual->const_data_ptr<float>()),
      relu_(epilogue.relu) {}

void Output::write(const at::Tensor& computed, const std::vector<int64_t>& rows,
                   const Recipes& recipes) {
  const float* z = computed.const_data_ptr<float>();
  const int64_t each = computed.numel() / static_cast<int64_t>(rows.size());
  for (size_t i = 0; i < rows.size(); ++i, z += each) {
    const int64_t at = rows[i] * clips_.clip();
    if (recipes[i] == nullptr)
      finish(z, each, residual(at), relu_, to_ + at);
    else
      recipes[i]->write(z, clips_.frames, clips_.area(), residual(at), relu_, to_ + at);
  }
}

TiledConvolution::Receive Output::writer(const std::vector<int64_t>& rows, const Recipes& recipes) {
  return [&, this](const float* z, int64_t clip, int64_t frame, int64_t first, int64_t positions) {
    const Recipe* recipe = recipes[clip].get();
    int64_t at = rows[clip] * clips_.clip() + first * clips_.channels;
    if (recipe == nullptr) {
      at += frame * clips_.frame();
      finish(z, positions * clips_.channels, residual(at), relu_, to_ + at);
    } else {
      recipe->write_made(z, frame, clips_.frames, clips_.area(), positions, residual(at), relu_,
                         to_ + at);
    }
  };
}

bool local(const Recipes& recipes) {
  return std::all_of(recipes.begin(), recipes.end(),
                     [](const auto& recipe) { return recipe == nullptr || recipe->local(); });
}

}  // namespace vared2

"""The towers: features, sampling, training, bundles and frozen inference. Tensors never leave it."""

"""Fast counterparts of the kernels, for NumPy arrays; `minidnn.backend.kernels` chooses between the two."""

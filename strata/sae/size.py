"""How many bytes an SAE and its training take: for plans, and to refuse what does not fit before it is allocated."""

from strata.sae.knobs import Train

FLOAT = 4  # bytes
COPIES = 7  # of an SAE during training: weights, gradients, two moments, the best, the last and the untrained SAE


def sae_bytes(knobs: Train, width: int) -> int:
    """Return the bytes of one SAE's weights in float32.

    These are encoder, decoder and their biases, thresholds for all rules but top-k, and the mean of a decoder that ends
    in tanh or sigmoid.
    """
    thresholds = 0 if knobs.rule == "topk" else knobs.latents
    mean = width if knobs.decoder_activation != "identity" else 0
    return FLOAT * (2 * knobs.latents * width + knobs.latents + width + thresholds + mean)


def training_bytes(knobs: Train, width: int, rows: int) -> int:
    """Return the bytes that a training on ``rows`` rows takes.

    These are the copies of the SAE, and two windows of rows in bfloat16: the one in use and the next one.
    """
    window = min(knobs.window_rows, rows) * width * 2
    return COPIES * sae_bytes(knobs, width) + 2 * window

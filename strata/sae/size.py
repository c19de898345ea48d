"""How large an SAE is, and what its training holds: what a plan says, and what is refused before it is allocated."""

from strata.sae.knobs import Train

FLOAT = 4  # bytes
COPIES = 7  # of an SAE in training: weights, gradients, two moments, the best, the last, the untrained


def sae_bytes(knobs: Train, width: int) -> int:
    """Of one SAE's weights, float32: encoder, decoder and their biases, and thresholds unless top-k needs none; a
    bounded decoder's mean."""
    thresholds = 0 if knobs.rule == "topk" else knobs.latents
    mean = width if knobs.decoder_activation != "identity" else 0
    return FLOAT * (2 * knobs.latents * width + knobs.latents + width + thresholds + mean)


def training_bytes(knobs: Train, width: int, rows: int) -> int:
    """Of a training on ``rows`` rows: the SAE's copies, the window of rows and the one that follows it, bfloat16."""
    window = min(knobs.window_rows, rows) * width * 2
    return COPIES * sae_bytes(knobs, width) + 2 * window

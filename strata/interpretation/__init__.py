"""Find out what each latent of a layer fires on.

In: the activations of a layer, the tokens and documents under them, the SAE of the layer, the language model.
Out: sparse codes by latent, statistics, examples, enrichment, logit lens, and explanations with scores.
"""

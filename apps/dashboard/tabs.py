"""The tabs of the page, in their order. Importing this loads all that they need."""

from apps.dashboard import clustering, documents, latents, reduction, similarity, text, training

TABS = {
    "Latents": latents.show,
    "Documents": documents.show,
    "Dimensions": reduction.show,
    "Clustering": clustering.show,
    "Similarity": similarity.show,
    "Training": training.show,
    "Try a text": text.show,
}
SAMPLED = {"Documents", "Dimensions", "Clustering", "Similarity"}  # look at a sample, and the sidebar asks of what

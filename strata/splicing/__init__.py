"""What a reconstruction does to the language model when it takes the activations' place."""

"""Twins of an SAE: controls of equal budget, with a part held at random; by how much the SAE beats them."""

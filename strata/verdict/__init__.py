"""Compare an SAE with its targets and its controls: does it pass or fail, and why?"""

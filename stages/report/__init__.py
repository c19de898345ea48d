"""In: each layer's measurements and history. Out: the scorecard, one flat summary, pictures, one page of HTML."""

"""In: params.yaml and what is known of the model. Out: a table of what each stage would cost, before it runs."""

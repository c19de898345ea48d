"""In: binary tasks that others made, a language model, a layer's SAEs. Out: the tasks with their distinct prompts, the
activations of these, and how well k latents tell two classes of prompts apart, by the method of sae-probes."""

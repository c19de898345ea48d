"""An SAE against its targets and its controls: pass or fail, and why."""

"""Publishing to the Hugging Face Hub: what is checked before, and an upload that can be interrupted anywhere."""

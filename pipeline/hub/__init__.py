"""Publishes to the Hugging Face Hub: the checks before, and an upload that can be interrupted at any point."""

"""Pushes datasets and models to the Hugging Face Hub: checks, and an upload that can be interrupted at any point."""

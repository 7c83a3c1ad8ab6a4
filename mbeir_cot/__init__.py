"""The program: commands, and nothing that another package imports."""

"""The teacher: hosting it (`hosting`) and asking it (`client`)."""

"""What the online loop of DAS is made of, with the faults of its published code, each of which can be switched off."""

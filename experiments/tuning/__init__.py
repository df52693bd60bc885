"""What fine-tuning baselines share: chains of any prior that may learn, and how to learn; one concept a file."""

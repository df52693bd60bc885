"""Rewards of images: what people like, what a prompt asks for, what a file weighs; and the networks behind them."""

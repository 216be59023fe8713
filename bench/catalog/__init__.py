"""What is registered: lists, and a page on each method, attack, data set, model and protocol."""

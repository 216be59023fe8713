"""Lists of what is registered, and a page on each method, attack, data set, model and protocol."""

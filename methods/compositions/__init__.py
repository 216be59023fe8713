"""What can be put around any method: weight averages, AWP, class weights."""

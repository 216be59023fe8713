"""Compositions, which wrap any method: weight averages and adversarial weight perturbation."""

"""AutoAttack: the standard ensemble, its four attacks, a quicker approximation, and the released package."""

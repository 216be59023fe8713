"""AutoAttack: the standard ensemble, its four attacks, a quick form, and the reference package beside them."""

"""What tests share: small plans and results, networks, planted faults, and the structure of the code."""

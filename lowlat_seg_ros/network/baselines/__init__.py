"""The networks of the methods that the paper's propagation is compared with."""

"""Training in the paper's three stages (Sec. 4): base network, propagation, selector."""

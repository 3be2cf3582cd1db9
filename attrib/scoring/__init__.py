"""What fitted curvature says about training examples: influence by example, layer, head, token, atom and group."""

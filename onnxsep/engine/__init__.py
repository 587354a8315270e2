"""From a match to new nodes: matching, planning, factors, surgery."""

"""Items, design, placement, plan, overlay, ledger and audit of the insertions."""

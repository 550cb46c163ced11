"""What goes in, how often, where and when - and the proof."""

"""What people look at: overlays, the HTML report, where gazing pays."""

"""Reports for people: overlays, the HTML report, where gazing pays."""

"""What becomes of old events: rules of how much is kept, trimming, and archives, through which reads reach."""

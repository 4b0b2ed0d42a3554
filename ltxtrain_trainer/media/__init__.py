"""Video files into frames and sound, and back. No torch: these modules run in small CPU workers."""

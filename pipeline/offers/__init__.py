"""Where videos come from: folders, lists, platforms and published data sets. One module a kind."""

"""From files to encoded columns: readers, vocabularies, encoders and the store."""

"""Train small models, gates, and models with longer contexts. This package is above data and below measure."""

"""Load models, and put methods into them. This package is above methods and below data."""

"""The picture is first walked back to noise."""

"""The ranking service: artefacts, the engine that scores with them, the REST API and its client."""

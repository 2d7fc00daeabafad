/** The specification as it is served and checked in: one document, as JSON and as YAML. */
import { stringify } from "yaml"
import { openApiDocument } from "../api/document.ts"

export const specJson: string = JSON.stringify(openApiDocument)

export const specYaml: string = stringify(openApiDocument, { lineWidth: 110, aliasDuplicateObjects: false })

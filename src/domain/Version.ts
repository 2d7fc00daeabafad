/** The version of the dataplane, that of package.json. */
export const version = "0.1.0"

import { testKills } from "./killMatrixTest.ts"

testKills(1)

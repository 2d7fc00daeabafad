import { testKills } from "./killMatrixTest.ts"

testKills(0)
